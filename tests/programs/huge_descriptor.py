"""A descriptor number that cannot be: an OSError, not gigabytes of table.  Argument: backend."""

import resource
import sys

import aiounify

# The high-water mark of a new process begins at that of its parent.
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
loop = aiounify.new_event_loop(sys.argv[1])
for number in (10**6, 10**9, 2**31 - 1):
    for method in (loop.add_reader, loop.add_writer, loop.add_priority):
        try:
            method(number, print)
        except OSError as error:
            assert "file descriptor" in str(error)
        else:
            raise AssertionError(f"{number} was taken")
for number in (2**31, 2**63, 2**64, 10**30, -(2**40)):
    try:
        loop.add_reader(number, print)
    except (OverflowError, ValueError):
        continue
    raise AssertionError(f"{number} was taken")
assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 100_000
loop.close()
