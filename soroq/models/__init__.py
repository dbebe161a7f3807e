"""Where each architecture keeps its blocks, linears and foldable edges."""
