{
  description = "Images of an LLM worker: Nix fetches and names what is pinned, `python -m images` writes the bytes";
  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs = { self, nixpkgs }:
    let
      inherit (builtins) foldl' fromJSON fromTOML listToAttrs map match path readFile replaceStrings substring;
      system = "x86_64-linux";
      pkgs = nixpkgs.legacyPackages.${system};
      python = pkgs.python3.withPackages (ps: [ ps.installer ps.pip ]);
      provers = pkgs.python3.withPackages (ps: [ ps.hypothesis ps.installer ps.mypy ps.pytest ps.pytest-timeout ]);

      lock = fromJSON (readFile ./images/images.lock.json);
      locked = import ./ci/nix/locked.nix { inherit lock; releases = fromTOML (readFile ./images/releases.toml); };
      # All that decides about an image's bytes: an edit elsewhere builds none again.
      ours = file: _: match "${toString ./.}/(checkpoint|cpu_engine|handler|images|pyproject[.]toml)(/.*)?" file != null;
      sources = path { path = ./.; name = "sources"; filter = ours; };
      hex = file: substring 7 64 file.digest;
      ofIndexAndHub = [ "PIP_INDEX_URL" "PIP_EXTRA_INDEX_URL" "HF_ENDPOINT" "HF_TOKEN" ];

      # One derivation for each pinned file, whose hash is the lock's. They alone have the network; the variables say how to use it.
      fetched = arguments: file: pkgs.runCommand "pinned-${hex file}" {
        nativeBuildInputs = [ python ];
        outputHashAlgo = "sha256";
        outputHash = hex file;
        impureEnvVars = [ "http_proxy" "https_proxy" "no_proxy" "NIX_SSL_CERT_FILE" ] ++ ofIndexAndHub;
      } ''
        export CALLED_FROM=$PWD SSL_CERT_FILE=''${NIX_SSL_CERT_FILE:-${pkgs.cacert}/etc/ssl/certs/ca-bundle.crt}
        cd ${sources}
        python3 -B -m images fetch ${arguments} only=${file.digest} cache=cache
        mv "$CALLED_FROM/cache/sha256/${hex file}" $out
      '';

      # image { arch = "sm89"; release = "2.5.0"; cuda = "12.9"; model = "org/name"; quantization = "wint4"; }: all but arch may be left out;
      # the model is one of the lock's, and `circumstances` are variables that must not matter.
      image = { arch, release ? "", cuda ? "", model ? "", quantization ? "", circumstances ? { } }:
        let wanted = locked { inherit arch release cuda model; };
        in pkgs.runCommand "image-${arch}" (circumstances // { inherit quantization; nativeBuildInputs = [ python ]; }) ''
          export CALLED_FROM=$PWD
          mkdir -p cache/sha256
          ${toString (map (file: "ln -s ${fetched wanted.arguments file} cache/sha256/${hex file};") wanted.files)}
          cd ${sources}
          python3 -B -m images build ${wanted.arguments} quantization="$quantization" cache=cache out=$out
        '';

      push = arch: pkgs.writeShellApplication {
        name = "push-${arch}";
        runtimeInputs = [ python pkgs.skopeo ];
        text = ''
          export CALLED_FROM="''${CALLED_FROM:-$PWD}"
          cd ${sources}
          exec python3 -B -m images push arch=${arch} out=${image { inherit arch; }} "$@"
        '';
      };

      check = name: script: pkgs.runCommand name { nativeBuildInputs = [ provers pkgs.ruff ]; } ''
        cp -r --no-preserve=mode ${self} tree; cd tree
        ${script}
        touch $out
      '';
      each = name: make: listToAttrs (map (arch: { name = name arch; value = make arch; }) [ "sm80" "sm86" "sm89" "sm90" "cpu" ]);
      # Each image, and each with one of the lock's models, such as image-cpu-baked-org--name; a dot of the model's name is _ here.
      plain = each (arch: "image-${arch}") (arch: image { inherit arch; });
      baked = { repository, ... }: each (arch: "image-${arch}-baked-${replaceStrings [ "/" "." ] [ "--" "_" ] repository}")
        (arch: image { inherit arch; model = repository; });
    in
    {
      lib = { inherit image; };
      packages.${system} = foldl' (all: model: all // baked model) plain lock.models;
      apps.${system} = each (arch: "push-${arch}") (arch: { type = "app"; program = "${push arch}/bin/push-${arch}"; });
      checks.${system} = {
        lint = check "lint" "ruff check --no-cache; ruff format --check --no-cache";
        types = check "types" "python3 -m mypy --cache-dir=/dev/null images/build.py images/verify.py";
        laws = check "laws" "python3 -m pytest -q tests/images/test_{layout,tar,verify,wheels}.py";
        digest = check "digest" "diff -r ${plain.image-cpu} ${image { arch = "cpu"; circumstances = { TZ = "Asia/Tokyo"; LC_ALL = "C"; }; }}";
      };
      devShells.${system}.default = pkgs.mkShell { packages = [ provers pkgs.just pkgs.ruff pkgs.skopeo ]; };
    };
}
