"""Trainings in a process of their own, killed after a number of steps."""

import multiprocessing
import os
import random
import time
from collections.abc import Callable


def killed_after(steps: int, target: Callable, *arguments, draw: random.Random) -> int:
    """Exit code of a process that is killed within 10 ms of its step of this number, if it gets that far.

    ``target`` takes the arguments and a descriptor, to which it writes a byte before each step.
    """
    reader, writer = os.pipe()
    context = multiprocessing.get_context("fork")  # torch is there already
    child = context.Process(target=target, args=(*arguments, writer))
    child.start()
    os.close(writer)
    with open(reader, "rb", buffering=0) as told:
        while steps and told.read(1):
            steps -= 1
        if not steps:
            time.sleep(draw.uniform(0, 0.01))
            child.kill()
    child.join()
    return child.exitcode
