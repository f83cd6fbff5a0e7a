cimport cython

from headway.engine.law cimport StepLaw


cdef class LogCounts:
    cdef long long[::1] counts
    cdef readonly double total_s
    cdef readonly double log_min
    cdef readonly double inv_log_growth
    @cython.final
    cdef int bin(self, double seconds) noexcept
    cpdef int add(self, double seconds, long long times) except -1


@cython.final
cdef class Gaps(LogCounts):
    cdef readonly double since_s
    cdef long long[::1] steps
    cdef long long[::1] ctx
    cdef long long[::1] ctx_window
    cpdef int start(self, double since_s) except -1
    cdef int add_steps(self, long long n, long long steps, long long ctx, long long ctx_window) except -1
