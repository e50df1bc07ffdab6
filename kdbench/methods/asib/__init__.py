"""ASIB: adaptive synergy of several teachers through an information-bottleneck bridge, in A- and B-Steps."""
