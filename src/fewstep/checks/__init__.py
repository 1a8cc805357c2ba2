"""The checks of `fewstep check`, made before any compute from parameters, names and headers.

There is one module per topic. It has `faults(chain)`, which would stop the chain, `warnings(chain)`, which
would spoil its results, or both; each yields one line per problem.
"""
