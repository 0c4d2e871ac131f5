# What the flake offers on one system: the tools as programs, the images as packages, checks, a shell and a formatter.
# The images are for linux/amd64 on every system: Nix fetches and names what is pinned, `python -m images` writes the bytes.
{ self, pkgs }:
let
  inherit (builtins) concatStringsSep foldl' fromJSON fromTOML listToAttrs map mapAttrs match path readFile replaceStrings substring;
  root = ../../.;

  # What runs the worker with the embedded engine, what builds images, and what proves both.
  worker = ps: [ ps.aiohttp ps.anyio ps.httptools ps.huggingface-hub ps.jinja2 ps.numpy ps.prometheus-client ps.psutil ps.sentencepiece ps.tokenizers ];
  builder = ps: [ ps.installer ps.pip ];
  prover = ps: builder ps ++ [ ps.hypothesis ps.mypy ps.pytest ps.pytest-timeout ];
  python = pkgs.python3.withPackages builder;
  runner = pkgs.python3.withPackages (ps: worker ps ++ builder ps);

  lock = fromJSON (readFile (root + "/images/images.lock.json"));
  locked = import ./locked.nix { inherit lock; releases = fromTOML (readFile (root + "/images/releases.toml")); };
  # All that an image's bytes depend on: an edit elsewhere builds none again.
  ours = file: _: match "${toString root}/(checkpoint|cpu_engine|handler|images|pyproject[.]toml)(/.*)?" file != null;
  sources = path { path = root; name = "sources"; filter = ours; };
  hex = file: substring 7 64 file.digest;

  # One derivation for each pinned file, whose hash is the lock's. Only these have the network; the variables say how to use it.
  fetched = arguments: file: pkgs.runCommand "pinned-${hex file}" {
    nativeBuildInputs = [ python ];
    outputHashAlgo = "sha256";
    outputHash = hex file;
    impureEnvVars = [ "http_proxy" "https_proxy" "no_proxy" "NIX_SSL_CERT_FILE" "PIP_INDEX_URL" "PIP_EXTRA_INDEX_URL" "HF_ENDPOINT" "HF_TOKEN" ];
  } ''
    export CALLED_FROM=$PWD SSL_CERT_FILE=''${NIX_SSL_CERT_FILE:-${pkgs.cacert}/etc/ssl/certs/ca-bundle.crt}
    cd ${sources}
    python3 -B -m images fetch ${arguments} locked=yes only=${file.digest} cache=cache
    mv "$CALLED_FROM/cache/sha256/${hex file}" $out
  '';

  # All but arch may be left out; the model is one of the lock's, and `circumstances` are variables that must not matter.
  image = { arch, release ? "", cuda ? "", model ? "", quantization ? "", user ? "", circumstances ? { } }:
    let wanted = locked { inherit arch release cuda model; };
    in
    if wanted.missing != [ ]
    then
      pkgs.runCommand "image-${arch}" { said = "error: ${concatStringsSep "; " wanted.missing}; pin with `ci/just lock ${wanted.arguments}`"; } ''
        echo "$said" >&2
        exit 1
      ''
    else
      pkgs.runCommand "image-${arch}" (circumstances // { inherit quantization user; nativeBuildInputs = [ python ]; }) ''
        export CALLED_FROM=$PWD
        mkdir -p cache/sha256
        ${toString (map (file: "ln -s ${fetched wanted.arguments file} cache/sha256/${hex file};") wanted.files)}
        cd ${sources}
        python3 -B -m images build ${wanted.arguments} quantization="$quantization" user="$user" cache=cache out=$out
      '';

  # A program of the tree, which finds files from where it is called.
  program = name: inputs: command: pkgs.writeShellApplication {
    inherit name;
    runtimeInputs = inputs;
    text = ''
      export CALLED_FROM="''${CALLED_FROM:-$PWD}"
      cd ${self}
      exec python3 -B -m ${command} "$@"
    '';
  };
  tools = listToAttrs (map (name: { inherit name; value = program name [ runner ] "tools.${name}"; }) [ "run" "serve" "plan" "deploy" ]);
  push = arch: program "push-${arch}" [ python pkgs.skopeo ] "images push arch=${arch} out=${image { inherit arch; }}";
  app = built: { type = "app"; program = "${built}/bin/${built.name}"; };

  architectures = [ "sm80" "sm86" "sm89" "sm90" "cpu" ];
  each = name: make: listToAttrs (map (arch: { name = name arch; value = make arch; }) architectures);
  # Each image, and each with one of the lock's models, such as image-cpu-baked-org--name; a dot of the model's name is _ here.
  plain = each (arch: "image-${arch}") (arch: image { inherit arch; });
  baked = { repository, ... }: each (arch: "image-${arch}-baked-${replaceStrings [ "/" "." ] [ "--" "_" ] repository}")
    (arch: image { inherit arch; model = repository; });

  check = name: script: pkgs.runCommand name { nativeBuildInputs = [ (pkgs.python3.withPackages prover) pkgs.ruff ]; } ''
    cp -r --no-preserve=mode ${self} tree; cd tree
    ${script}
    touch $out
  '';
  far = image { arch = "cpu"; circumstances = { TZ = "Asia/Tokyo"; LC_ALL = "C"; }; };
in
{
  inherit image;
  packages = foldl' (all: model: all // baked model) (plain // { default = tools.run; }) lock.models;
  apps = mapAttrs (_: app) (tools // { default = tools.run; }) // mapAttrs (_: app) (each (arch: "push-${arch}") push);
  checks = {
    lint = check "lint" "ruff check --no-cache; ruff format --check --no-cache";
    types = check "types" "python3 -m mypy --cache-dir=/dev/null images/build.py images/verify.py";
    laws = check "laws" "python3 -m pytest -q tests/images/test_{layout,tar,verify,wheels}.py";
  } // (if (locked { arch = "cpu"; }).missing == [ ] then { digest = check "digest" "diff -r ${plain.image-cpu} ${far}"; } else { });
  devShells.default = pkgs.mkShell {
    packages = [ (pkgs.python3.withPackages (ps: worker ps ++ prover ps)) pkgs.just pkgs.ruff pkgs.skopeo ];
  };
  formatter = pkgs.writeShellApplication {
    name = "format";
    runtimeInputs = [ pkgs.ruff ];
    text = ''
      ruff check --fix-only "$@"
      ruff format "$@"
    '';
  };
}
