"""A stand-in for `test.test_asyncio`, for the tests of the runner itself."""
