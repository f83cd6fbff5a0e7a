cimport cython

from headway.engine.core cimport Engine
from headway.engine.lane cimport Lane
from headway.engine.law cimport StepLaw


@cython.final
cdef class Lockstep:
    cdef readonly list ranks
    cdef StepLaw law
    cdef readonly bint busy
    cdef double end_s
    cdef readonly object shared_by_tokens
    cpdef void notice(self, double now)
    cpdef void step(self, double now)
