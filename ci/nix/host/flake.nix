# Stands in for nixpkgs where nothing can be fetched: the names that the project's flake takes from it, made of the host's own tools.
# Builds stay in Nix's sandbox, which shows them the host's /usr, /bin and /lib, and a virtual environment as /host (ci/nix/offline.py).
# On systems that are not the host's, names can be evaluated and nothing built.
{
  description = "The few names of nixpkgs that the project needs, from the host's own tools";

  outputs = { self }:
    let
      inherit (builtins) concatStringsSep deepSeq listToAttrs map;
      systems = [ "x86_64-linux" "aarch64-linux" "x86_64-darwin" "aarch64-darwin" ];
      # Tools by the folder above their bin: a build finds them there, as it finds those of nixpkgs.
      environment = "/host";
      host = "/usr";

      # Only these may be asked for, so that a name which the real one lacks is an error here too.
      modules = listToAttrs (map (name: { inherit name; value = host; }) [
        "aiohttp" "anyio" "httptools" "huggingface-hub" "hypothesis" "installer" "jinja2" "mypy" "numpy" "pip" "prometheus-client"
        "psutil" "pytest" "pytest-timeout" "sentencepiece" "tokenizers"
      ]);

      packages = system:
        let
          runCommand = name: attributes: script:
            derivation ({
              inherit name system;
              builder = "/bin/bash";
              # exit keeps bash from becoming the last command: coreutils close their output before they end, and Nix kills what has closed it.
              args = [ "-euo" "pipefail" "-c" "${script}\nexit 0" ];
              PATH = concatStringsSep ":" (map (tool: "${tool}/bin") ((attributes.nativeBuildInputs or [ ]) ++ [ host ]));
            } // attributes);
        in
        {
          inherit runCommand;
          python3.withPackages = choose: deepSeq (choose modules) environment;
          ruff = environment;
          just = environment;
          skopeo = host;
          # Not seen in the sandbox: with the host's tools, NIX_SSL_CERT_FILE names the certificates.
          cacert = host;
          mkShell = { packages }: runCommand "shell" { nativeBuildInputs = packages; } "touch $out";
          # Runs outside of the sandbox, where the tools are those of the caller.
          writeShellApplication = { name, runtimeInputs, text }:
            deepSeq runtimeInputs (runCommand name { inherit text; passAsFile = [ "text" ]; } ''
              mkdir -p $out/bin
              { echo '#!/bin/bash'; echo 'set -euo pipefail'; cat "$textPath"; } > $out/bin/${name}
              chmod +x $out/bin/${name}
            '');
        };
    in
    {
      legacyPackages = listToAttrs (map (system: { name = system; value = packages system; }) systems);
    };
}
