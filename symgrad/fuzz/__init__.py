"""Random programs and their judges: `symgrad fuzz`.

    programs.py      a program as data: it builds expressions, and prints itself as a script
    generation.py    what a random program is made of: leaves, lines, and the values they have
    elements.py, moves.py, sums.py, loops.py    the lines, verb by verb
    judges.py        what must hold for each program
    rounding.py      how far rounding may carry a result
    minimisation.py  the smallest program that still fails
    simulation.py    the CUDA target in Numba's simulator, in a process of its own
    campaign.py      many programs, progress, and what they covered
"""
