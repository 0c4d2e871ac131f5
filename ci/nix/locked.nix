# Which pinned files an image reads: the lock's rows for a target, by the same keys as images/releases.py and images/lock.py.
# `missing` has a sentence for each input that is not pinned; other errors end the evaluation, or are found by Python.
{ releases, lock }:
{ arch, release ? "", cuda ? "", model ? "" }:
let
  inherit (builtins) concatStringsSep elem filter head lessThan sort;
  cpu = arch == "cpu";
  named = field: got: entries: expected:
    if entries == [ ] then throw "${field}: got '${got}', expected one of ${concatStringsSep ", " (sort lessThan expected)}" else head entries;

  name = if release == "" then releases.default else release;
  chosen = named "release" name (filter (known: known.name == name) releases.releases) (map (known: known.name) releases.releases);
  build = named "cuda" cuda (filter (known: cuda == "" || known.cuda == cuda) chosen.builds) (map (known: known.cuda) chosen.builds);
  other = chosen.wheels.architectures or [ ];
  target = named "arch" arch (filter (_: cpu || elem arch (chosen.prebuilt ++ other)) [
    (if cpu then releases.cpu else chosen // { inherit (build) base; })
  ]) (chosen.prebuilt ++ other ++ [ "cpu" ]);

  engine = if cpu then "cpu" else "fastdeploy";
  fits = wheel: wheel.release == name && wheel.cuda == build.cuda && elem arch wheel.architectures;

  bases = filter (entry: entry.reference == target.base) lock.bases;
  wheels = filter fits lock.wheels;
  packages = filter (entry: entry.engine == engine && entry.python == target.python) lock.packages;
  models = filter (entry: entry.repository == model) lock.models;
  replaced = !cpu && !(elem arch chosen.prebuilt);
  pinned = what: entries: if entries == [ ] then [ "${what}: not in the lock" ] else [ ];
in
{
  arguments = "arch=${arch}" + (if cpu then "" else " release=${name} cuda=${build.cuda}") + (if model == "" then "" else " model=${model}");
  # The base is referenced, so that nothing of it is fetched; but without it there is no image.
  missing = pinned "the base ${target.base}" bases
    ++ (if replaced then pinned "FastDeploy ${name} for ${concatStringsSep " and " other}" wheels else [ ])
    ++ pinned "the worker's packages for Python ${target.python} (engine ${engine})" packages
    ++ (if model == "" then [ ] else pinned "the model ${model}" models);
  files = (if replaced then [ (head wheels).file ] else [ ])
    ++ (head packages).wheels
    ++ (if model == "" then [ ] else (head models).files);
}
