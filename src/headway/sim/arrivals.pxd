cimport cython

from headway.engine.sequence cimport HashChains, Sequence


@cython.final
cdef class Arrivals:
    cdef object batches
    cdef tuple menus
    cdef Py_ssize_t at
    cdef Py_ssize_t size
    cdef readonly long long taken
    cdef readonly bint exhausted
    cdef readonly double next_s
    cdef readonly double intake_s
    cdef bint with_chains
    cdef const long long[::1] id
    cdef const double[::1] arrival_s
    cdef const long long[::1] prompt_tokens
    cdef const long long[::1] output_tokens
    cdef const double[::1] predicted
    cdef const int[::1] priority
    cdef const double[::1] deadline_s
    cdef const int[::1] slo_class
    cdef const int[::1] tenant
    cdef const long long[::1] session
    cdef const long long[::1] offsets
    cdef const long long[::1] chained
    cdef HashChains chains
    cdef int refill(self) except -1
    cdef Sequence take(self)
