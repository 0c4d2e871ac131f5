"""What stands in for FastDeploy, RunPod's REST API, the model hub and the vendor, and the tests of these stand-ins."""
