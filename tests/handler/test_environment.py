"""What an engine gets of the worker's environment is a list; whatever is not on it stays out, under whatever name."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.environment import engine_variables, withheld
from handler.fastdeploy.values import INTEGER_VARIABLES, NUMBER_VARIABLES
from tests.strategies import SETTINGS

SECRETS = (
    "APIKEY MYTOKEN AUTH_TOKENS GITHUB_PAT PASSPHRASE PRIVATE_KEY_PEM PGPASS DB_PWD DATABASE_URL NETRC_AUTH AWS_ACCESS_KEY_ID "
    "AWS_SECRET_ACCESS_KEY HF_TOKEN HUGGING_FACE_HUB_TOKEN RUNPOD_AI_API_KEY RUNPOD_POD_ID OPENAI_API_KEY FD_API_KEY "
    "FD_REDUNDANT_EXPERT_API_PASSWORD ENCODE_FEATURE_BOS_AK ENCODE_FEATURE_BOS_SK EXPORTER_OTLP_HEADERS HF_TOKEN_PATH SSH_AUTH_SOCK"
).split()


@pytest.mark.parametrize("name", SECRETS)
def test_no_secret_reaches_the_engine_whatever_it_is_called(name: str) -> None:
    assert engine_variables({name: "needle"}) == {}
    assert withheld({name: "needle", "PATH": "/bin"}) == [name]


@pytest.mark.parametrize(
    "name",
    [
        *"PATH HOME LANG LC_ALL TZ TMPDIR LD_LIBRARY_PATH PYTHONPATH PYTHONUNBUFFERED XDG_CACHE_HOME SSL_CERT_FILE".split(),
        *"CUDA_VISIBLE_DEVICES CUDA_MODULE_LOADING NVIDIA_VISIBLE_DEVICES NCCL_DEBUG NCCL_P2P_DISABLE OMP_NUM_THREADS".split(),
        *"FD_LOG_DIR FD_ATTENTION_BACKEND FLAGS_use_pd_disaggregation FLAGS_max_partition_size PADDLE_PDX_CACHE_HOME GLOG_v".split(),
        *"HF_HOME HF_HUB_CACHE HF_ENDPOINT HF_HUB_OFFLINE DO_NOT_TRACK OPENBLAS_NUM_THREADS TRITON_CACHE_DIR".split(),
        *sorted(INTEGER_VARIABLES | NUMBER_VARIABLES),
    ],
)
def test_what_an_engine_runs_by_reaches_it(name: str) -> None:
    assert engine_variables({name: "1"}) == {name: "1"}


@pytest.mark.parametrize("name", ["http_proxy", "HTTPS_PROXY", "all_proxy", "NO_PROXY"])
def test_a_proxy_reaches_the_engine_unless_an_account_stands_in_its_address(name: str) -> None:
    assert engine_variables({name: "http://proxy:3128"}) == {name: "http://proxy:3128"}
    assert engine_variables({name: "http://user:pass@proxy:3128"}) == {}


@pytest.mark.parametrize("name", ["HF_ENDPOINT", "FD_MODEL_CACHE", "EXPORTER_OTLP_ENDPOINT", "PATH"])
def test_no_address_with_an_account_in_it_reaches_the_engine(name: str) -> None:
    assert engine_variables({name: "https://me:needle@hub.example"}) == {}
    assert engine_variables({name: "https://hub.example/a@b"}) == {name: "https://hub.example/a@b"}


def test_empty_switches_of_fastdeploy_are_left_out_since_it_reads_them_with_int() -> None:
    assert engine_variables({"FD_DEBUG": "", "LANG": ""}) == {"LANG": ""}


NAMES = st.text(string.ascii_uppercase + "_", min_size=1, max_size=12) | st.sampled_from([*SECRETS, "PATH", "FD_DEBUG", "NCCL_DEBUG"])


@SETTINGS
@given(st.dictionaries(NAMES, st.text(max_size=5)), st.sets(NAMES))
def test_every_variable_is_passed_as_it_is_or_named_as_withheld_and_a_named_one_always_passes(
    environment: dict[str, str], further: set[str]
) -> None:
    """Rule: nothing is dropped in silence, and the operator's word is the last one."""
    passed = engine_variables(environment, further)
    assert passed.items() <= environment.items()
    assert sorted([*passed, *withheld(environment, further)]) == sorted(environment)
    assert further & environment.keys() <= passed.keys()
    assert engine_variables(passed, further) == passed
