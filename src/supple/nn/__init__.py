"""Which layers do not lose plasticity? CReLU and Fourier activations, and `convert_`, which puts them
into an existing network with widths kept consistent, or refuses with the module's path.
"""
