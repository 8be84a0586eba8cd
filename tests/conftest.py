"""What holds for every test. Invariant: no test fails because the machine was slow; a hang is caught by a limit of its own."""

from hypothesis import settings

# hypothesis would fail an example that takes over 200 ms, which a shared machine or a sanitizer does to any of them.
settings.register_profile("blipmq", settings(), deadline=None, print_blob=True)
settings.load_profile("blipmq")
