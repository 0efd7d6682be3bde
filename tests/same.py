"Whether two models are the same to the bit."


def same_parameters(a, b):
    "Return whether two models have equal parameters."
    return all(p.equal(q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
