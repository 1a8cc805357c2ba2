"""What `fewstep check` knows before any compute, from parameters, names and headers: one question a file.

A module has `faults(chain)`, what will stop the chain, or `warnings(chain)`, what will spoil it; a line each.
"""
