cimport cython

from headway.engine.lane cimport Lane


@cython.final
cdef class WorkDone:
    cdef readonly long long steps
    cdef readonly long long chunks
    cdef readonly long long area
    cdef readonly long long window_area
    cdef long long[::1] steps_by_tokens
    cdef long long[::1] prefill_by_tokens
    cdef long long[::1] steps_by_seqs
    cdef long long[::1] steps_by_decodes
    cdef long long[::1] ctx_by_decodes
    cdef long long[::1] window_by_decodes
    cdef int count(self, Lane lane, long long n, long long steps) except -1


@cython.final
cdef class BusyTime:
    cdef double since_s
    cdef double total_s
    cdef int note(self, bint busy, double now) except -1
    cpdef double until(self, double now) except? -1
