from ttt_docs import errors


def test_exit_codes_separate_usage_from_failure():
    assert errors.UsageError("x").exit_code == 2
    assert errors.DocumentError("x").exit_code == 1
    assert issubclass(errors.MemoryMismatchError, errors.MemoryFormatError)
