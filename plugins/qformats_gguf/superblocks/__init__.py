"""Types whose blocks are searched for their scales: K-quants, iq4_nl and iq4_xs."""
