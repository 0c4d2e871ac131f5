# Which pinned files an image reads: the lock's entries for a target, by the same keys as images/releases.py and images/lock.py.
# An input that is not pinned is an error of the evaluation, with the command that pins it; whatever else is wrong, Python says.
{ releases, lock }:
{ arch, release ? "", cuda ? "", model ? "" }:
let
  inherit (builtins) concatStringsSep elem filter head lessThan sort;
  cpu = arch == "cpu";
  named = field: got: entries: expected:
    if entries == [ ] then throw "${field}: got '${got}', expected one of ${concatStringsSep ", " (sort lessThan expected)}" else head entries;
  pinned = what: wanted: entries:
    if entries == [ ] then throw "${what}: not in the lock; pin it with `just lock ${wanted}`" else head entries;

  name = if release == "" then releases.default else release;
  chosen = named "release" name (filter (known: known.name == name) releases.releases) (map (known: known.name) releases.releases);
  build = named "cuda" cuda (filter (known: cuda == "" || known.cuda == cuda) chosen.builds) (map (known: known.cuda) chosen.builds);
  other = chosen.wheels.architectures or [ ];
  target = named "arch" arch (filter (_: cpu || elem arch (chosen.prebuilt ++ other)) [
    (if cpu then releases.cpu else chosen // { inherit (build) base; })
  ]) (chosen.prebuilt ++ other ++ [ "cpu" ]);

  arguments = "arch=${arch}" + (if cpu then "" else " release=${name} cuda=${build.cuda}");
  engine = if cpu then "cpu" else "fastdeploy";
  fits = wheel: wheel.release == name && wheel.cuda == build.cuda && elem arch wheel.architectures;

  base = pinned "the base ${target.base}" arguments (filter (entry: entry.reference == target.base) lock.bases);
  wheel = pinned "FastDeploy ${name} for ${concatStringsSep " and " other}" arguments (filter fits lock.wheels);
  packages = pinned "the worker's packages for Python ${target.python} (engine ${engine})" arguments
    (filter (entry: entry.engine == engine && entry.python == target.python) lock.packages);
  baked = pinned "the model ${model}" "${arguments} model=${model}" (filter (entry: entry.repository == model) lock.models);
in
# The base is referenced, so that nothing of it is fetched; but without it there is no image.
builtins.seq base {
  arguments = arguments + (if model == "" then "" else " model=${model}");
  files = (if cpu || elem arch chosen.prebuilt then [ ] else [ wheel.file ])
    ++ packages.wheels
    ++ (if model == "" then [ ] else baked.files);
}
