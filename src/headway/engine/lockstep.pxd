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
    cdef long long waited
    cdef long long gathered
    cdef readonly object shared_by_tokens
    cpdef void notice(self, double now)
    cdef bint wants(self, Engine engine, double now) except -1
    cdef bint withholds(self, double now) except -1
    cpdef void step(self, double now)
