"""The mathematics: pure functions on tensors. Imports torch, but no other package of fewstep.

One convention everywhere: t in [0, 1], t = 0 is data, t = 1 is noise,
`x_t = alpha(t) x_0 + sigma(t) eps` with `eps ~ N(0, I)`.
"""
