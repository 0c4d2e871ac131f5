"""Stands where FastDeploy's server stands and fails as FAULTS_PLAN says."""

import sys

from tests.twins.faulty_engine import main

sys.exit(main())
