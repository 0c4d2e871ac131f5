"""The images' builds under Nix: which pinned files they read (`locked.nix`), and how to build without nixpkgs (`host/`, `offline`)."""
