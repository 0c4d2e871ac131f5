"""Stands where FastDeploy's server stands and replays it: REPLAY holds further options of `tests.twins.replay`."""

import os
import shlex
import sys

from tests.twins.replay.__main__ import main

sys.argv[1:] += shlex.split(os.environ["REPLAY"])
sys.exit(main())
