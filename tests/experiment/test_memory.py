import platform
import resource
import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from experiment.memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    np.empty(64 * 2**20, np.uint8).fill(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""

FAULTS_OF_A_THREAD = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from experiment.memory import keep_freed_memory

def use(times):
    for _ in range(times):
        # More than the 64 MiB of one heap.
        buffers = [np.empty(2**24, np.uint8) for _ in range(5)]
        for buffer in buffers:
            buffer.fill(1)
        del buffers, buffer

if sys.argv[1] == "keep":
    assert keep_freed_memory()
with ThreadPoolExecutor(1) as thread:
    thread.submit(use, 2).result()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    thread.submit(use, 10).result()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode: str, program: str = FAULTS) -> int:
    command = [sys.executable, "-c", program, mode]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_a_large_buffer_that_was_freed_is_used_again_instead_of_mapped_anew():
    pages = 64 * 2**20 // resource.getpagesize()
    kept, returned = page_faults("keep"), page_faults("return")
    # numpy asks for huge pages, which the kernel may or may not give; only the ratio is certain.
    assert kept <= 1.2 * pages
    assert returned > 3 * kept


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.skipif(sys.maxsize < 2**32, reason="smaller heaps")
def test_what_a_thread_frees_is_used_again_beyond_its_first_heap():
    # Keeping all but a thread's second heap, as without room at its top, left 10,000 of 25,000.
    kept = page_faults("keep", FAULTS_OF_A_THREAD)
    assert kept < page_faults("return", FAULTS_OF_A_THREAD) / 100


RESIDENT = """
import sys
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from experiment.memory import return_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

def use(_):
    # Growing buffers teach glibc to keep ever larger ones.
    for size in (2, 4, 8, 16):
        held.append(np.ones(2**10))
        np.ones(size * 2**17)

if sys.argv[1] == "return":
    assert return_freed_memory()
held = []
before = resident()
with ThreadPoolExecutor(8) as threads:
    list(threads.map(use, range(64)))
    print(resident() - before)
"""


def resident_growth(mode: str) -> int:
    command = [sys.executable, "-c", RESIDENT, mode]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.skipif(resource.getpagesize() != 4096, reason="other pages")
def test_what_threads_free_goes_back():
    assert resident_growth("return") < resident_growth("default") / 4
