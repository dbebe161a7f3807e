"""One archive for a machine without a network: model, software, licences, proofs."""
