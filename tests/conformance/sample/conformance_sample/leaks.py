"""Leaves a descriptor open and an exception in a destructor."""

import os
import unittest


class Leaky:
    def __del__(self) -> None:
        raise RuntimeError("in a destructor")


class Leaks(unittest.TestCase):
    def test_descriptor(self) -> None:
        os.open("/dev/null", os.O_RDONLY)

    def test_destructor(self) -> None:
        Leaky()
