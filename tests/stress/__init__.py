"""A stress test that checks itself: random operations on instances of ``Llama``, in laps.

A lap opens instances of several kinds, does a number of operations on each, and closes them. Every few operations, and
at the end, the logits of an instance are compared with those of a fresh one that was given the same tokens. Between the
laps nothing is left: no thread, no file descriptor, no more memory than after the first laps.

    PYTHONPATH=tests python -m stress --seconds 600 --threads 2
    PYTHONPATH=tests python -m stress --seed 5 --first-lap 31 --laps 1 --tell   # lap 31 of that seed again, alone

With ``--interrupts`` KeyboardInterrupt is raised at any moment of a call, as Ctrl-C does.

Whatever is drawn in a lap comes from the seed, the lap's number and the thread's, so that with one thread a lap is the
same whenever it is run, and with more each thread's operations are.
"""
