{
  description = "An LLM worker for RunPod, served by FastDeploy: run it, plan and deploy it, and build its images";
  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs = { self, nixpkgs }:
    let
      inherit (builtins) filter hasAttr listToAttrs map mapAttrs;
      wanted = [ "x86_64-linux" "aarch64-linux" "x86_64-darwin" "aarch64-darwin" ];
      systems = filter (system: hasAttr system nixpkgs.legacyPackages) wanted;
      outputs = listToAttrs (map
        (system: { name = system; value = import ./ci/nix/outputs.nix { inherit self; pkgs = nixpkgs.legacyPackages.${system}; }; })
        systems);
      each = name: mapAttrs (_: of: of.${name}) outputs;
    in
    {
      # An image of linux/amd64 on any system: lib.image { arch = "sm89"; model = "org/name"; quantization = "wint4"; }
      lib = { inherit (outputs.x86_64-linux) image; };
      packages = each "packages";
      apps = each "apps";
      checks = each "checks";
      devShells = each "devShells";
      formatter = each "formatter";
    };
}
