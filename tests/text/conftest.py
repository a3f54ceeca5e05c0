from tests.weights.conftest import llama  # noqa: F401 (a fixture)
