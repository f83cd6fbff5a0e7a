from headway.engine.core cimport Engine
from headway.engine.lane cimport Lane
from headway.engine.sequence cimport Sequence


cdef class LiveReplica:
    cdef readonly list engines
    cdef readonly list handed
    cdef Engine leader
    cpdef double next_s(self) except? -1
    cpdef bint fits(self, Sequence seq) except -1
    cpdef int enqueue(self, Sequence seq, double now) except -1
    cpdef int expect(self, Sequence seq, double now) except -1
    cdef Engine emptiest(self, Sequence seq)
    cpdef list fetching(self)
    cpdef int let_go(self, Sequence seq, double now) except -1
    cpdef int land(self, Sequence seq, double now) except -1
    cpdef bint forsake(self, Sequence seq, double now) except -1
    cpdef tuple step(self, double now)
    cpdef bint abort(self, Sequence seq, double now) except -1
    cdef int cut_short(self, Engine engine, Sequence seq) except -1
