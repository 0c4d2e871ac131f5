"""Forty defects found in an earlier worker for FastDeploy: the tests that show each cannot come back, or why it cannot be made."""

from __future__ import annotations

FORM = "handler/fastdeploy/test_form_defaults.py"
JOB = "handler/test_job.py"
QUEUE = "handler/test_queue.py"
START = "handler/test_start.py"
CHECKS = "handler/fastdeploy/test_checks.py"
HUB = "tools/generate/test_generate.py"

DEFECTS: dict[int, tuple[str, ...]] = {
    1: (f"{FORM}::test_the_form_s_own_defaults_start_the_engine", f"{FORM}::test_zero_for_a_switch_is_no_flag_and_not_a_stray_word"),
    2: (f"{FORM}::test_the_whitespace_switch_has_its_real_name_and_off_is_not_the_text_false",),
    3: (f"{FORM}::test_a_flag_that_was_removed_is_refused_by_name_where_it_is_gone",),
    4: (f"{FORM}::test_false_turns_off_what_the_engine_has_on",),
    5: (f"{FORM}::test_every_variable_of_the_form_is_read_by_somebody",),
    6: (f"{FORM}::test_settings_that_are_json_reach_the_engine",),
    7: (f"{FORM}::test_limits_of_a_form_agree_with_each_other_and_with_the_engine",),
    8: (
        f"{FORM}::test_a_value_that_is_neither_true_nor_false_is_refused_and_never_the_default",
        "handler/test_settings.py::test_booleans_and_objects_are_read_strictly",
    ),
    9: ("test_architecture.py::test_importing_any_module_starts_nothing",),
    10: (f"{QUEUE}::test_no_job_is_taken_before_the_engine_has_answered",),
    11: (f"{START}::test_an_engine_that_ends_while_loading_is_a_failure_whatever_its_code",),
    12: (f"{QUEUE}::test_an_engine_killed_mid_stream_fails_the_job_and_ends_the_worker_within_3_s",),
    13: ("handler/test_errors.py::test_what_fastdeploy_answers_is_translated",),
    14: ("handler/test_relay.py::test_an_orphan_that_still_answers_does_not_hide_the_engines_death",),
    15: ("The worker holds no lock of an event loop at import: its modules make nothing when they are imported.",),
    16: (f"{QUEUE}::test_all_job_shapes_are_answered",),
    17: (f"{QUEUE}::test_all_job_shapes_are_answered",),
    18: (f"{JOB}::test_native_input_becomes_the_engines_request",),
    19: (f"{JOB}::test_native_input_becomes_the_engines_request",),
    20: (f"{JOB}::test_an_openai_body_reaches_the_engine_unchanged",),
    21: (f"{JOB}::test_an_openai_body_reaches_the_engine_unchanged",),
    22: ("Messages go to the engine's chat route as they came; the chat template of the checkpoint is applied there and nowhere else.",),
    23: (f"{JOB}::test_native_input_becomes_the_engines_request", f"{CHECKS}::test_each_form_of_prompt_passes_unchanged"),
    24: ("Answers are the engine's own: finish reasons, log-probabilities and fingerprints pass through the relay as they are.",),
    25: (f"{CHECKS}::test_every_name_of_the_model_becomes_the_one_that_the_engine_takes", f"{CHECKS}::test_any_other_model_is_openais_404"),
    26: (
        "handler/test_batching.py::test_the_bound_grows_by_the_factor_from_minimum_to_maximum",
        f"{QUEUE}::test_pieces_grow_as_the_request_asks",
    ),
    27: (f"{JOB}::test_the_spelling_of_a_route_does_not_matter", f"{JOB}::test_a_generic_route_takes_method_and_body"),
    28: (
        f"{JOB}::test_native_input_becomes_the_engines_request",
        f"{CHECKS}::test_what_fastdeploy_cannot_answer_is_a_400_that_names_the_field",
    ),
    29: (f"{QUEUE}::test_a_cancelled_job_stops_the_engines_work",),
    30: (f"{CHECKS}::test_a_request_id_of_the_caller_never_passes",),
    31: ("Ids of answers are the engine's own and whole; the log names the job beside each failure.",),
    32: (
        "checkpoint/test_find.py::test_downloads_go_to_hf_hub_cache_else_to_home_else_to_the_volume_else_to_the_librarys_own_folder",
        "checkpoint/test_find.py::test_the_image_comes_before_the_platforms_cache_and_that_before_the_hub",
    ),
    33: ("checkpoint/test_find.py::test_the_revision_is_honoured_in_every_place",),
    34: ("handler/test_settings.py::test_baked_settings_win_over_the_environment_and_it_over_defaults",),
    35: ("checkpoint/test_find.py::test_other_hubs_are_left_to_the_engine",),
    36: ("ci/test_locks.py::test_every_dependency_is_one_version_with_its_hashes",),
    37: (f"{START}::test_all_wrong_variables_are_named_at_once", "ci/test_docs.py::test_every_recipe_that_the_readme_names_is_there"),
    38: (
        f"{HUB}::test_the_listing_offers_whole_pools_that_its_image_covers_and_no_older_cuda",
        f"{HUB}::test_the_token_of_the_hub_is_a_field_and_every_key_is_read_by_somebody",
        f"{HUB}::test_the_schema_refuses",
    ),
    39: (
        f"{HUB}::test_the_hubs_tests_name_a_real_gpu_and_leave_time_for_the_load",
        "tools/generate/test_hub_defaults.py::test_a_worker_with_the_forms_environment_answers_the_hubs_first_test",
    ),
    40: ("handler/fastdeploy/test_preflight.py::test_another_architecture_names_the_image_to_use",),
}
