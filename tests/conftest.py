"""Settings that hold for all tests."""

import hypothesis

# a busy machine must not turn a slow example into a failure
hypothesis.settings.register_profile("infnerf", deadline=None)
hypothesis.settings.load_profile("infnerf")
