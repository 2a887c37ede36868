"""One test for each way in which a test can end; what passes must be seen in between."""

import asyncio
import ctypes
import os
import time
import unittest
from pathlib import Path


class Endings(unittest.TestCase):
    def test_a_ok(self) -> None:
        loop = asyncio.new_event_loop()
        loop.close()

    def test_b_crash(self) -> None:
        ctypes.string_at(0)

    def test_c_ok(self) -> None:
        pass

    def test_d_hang(self) -> None:
        time.sleep(1000)

    def test_e_exit(self) -> None:
        os._exit(3)

    def test_f_fail(self) -> None:
        self.fail("always")

    def test_g_flaky(self) -> None:
        # The working directory is new for each process, what is above it as well; /proc is not.
        seen = Path(os.environ["CONFORMANCE_SAMPLE"])
        if not seen.exists():
            seen.touch()
            raise RuntimeError("the first time")

    def test_h_subtest(self) -> None:
        for number in range(3):
            with self.subTest(number=number):
                self.assertNotEqual(number, 1)

    @unittest.skip("a reason")
    def test_i_skip(self) -> None:
        pass

    @unittest.expectedFailure
    def test_j_expected(self) -> None:
        self.fail("as expected")

    @unittest.expectedFailure
    def test_k_unexpected(self) -> None:
        pass

    def test_l_forks(self) -> None:
        if pid := os.fork():
            os.waitpid(pid, 0)
        else:
            raise RuntimeError("reaches the runner in the wrong process")


class NoFixture(unittest.TestCase):
    @classmethod
    def setUpClass(cls) -> None:
        raise RuntimeError("no fixture")

    def test_never(self) -> None:
        pass
