"""Units of resources: `ram=4 * xm.GiB`."""

vCPU = 1.0

KiB = 2**10
MiB = 2**20
GiB = 2**30
TiB = 2**40
PiB = 2**50

KB = 10**3
MB = 10**6
GB = 10**9
TB = 10**12
PB = 10**15
