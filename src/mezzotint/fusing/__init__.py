"""Rewrites the traced graph of a quantized network so that what lies between integer products runs in one step each.

    nodes      what a traced graph says about a value
    moves      removed, merged, moved: exact, every bit stays
    norms      group norm and layer norm with what stands before and behind them
    attention  scores, softmax, codes and the product with v
    backend    all of them in order, as a backend of torch.compile

See `mezzotint.optimization`, which is what calls it.
"""
