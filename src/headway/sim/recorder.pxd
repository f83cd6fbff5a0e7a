cimport cython

from headway.engine.gaps cimport LogCounts
from headway.engine.sequence cimport Sequence


@cython.final
cdef class Recorder:
    cdef readonly bint keep
    cdef readonly bint tallies
    cdef readonly long long warmup
    cdef readonly long long arrived
    cdef readonly long long finished
    cdef readonly long long rejected
    cdef readonly long long failed
    cdef readonly long long prompt_tokens
    cdef readonly long long cached_tokens
    cdef readonly long long output_tokens
    cdef readonly long long recomputed_tokens
    cdef readonly double last_arrival_s
    cdef readonly double last_end_s
    cdef long long[::1] id
    cdef double[::1] times
    cdef int[::1] counts
    cdef Py_ssize_t capacity
    cdef double[:, ::1] limits
    cdef long long measured
    cdef Py_ssize_t batches
    cdef long long[:, :, ::1] classes
    cdef readonly LogCounts ttft
    cdef readonly LogCounts tpot
    cdef readonly LogCounts e2e
    cdef double start_s
    cdef double end_s
    cdef long long[::1] at_window
    cdef double[::1] recent_s
    cdef long long[::1] recent_tokens
    cdef Py_ssize_t recent_at
    cdef Py_ssize_t recent_size
    cdef long long ended
    cdef long long ended_tokens
    cdef int remember(self, double last_s, long long tokens) except -1
    cdef int count_until(self, double time_s) except -1
    cdef int room(self, long long row) except -1
    cdef int arrive(self, Sequence seq) except -1
    cdef int end(self, Sequence seq) except -1
    cdef int write(self, Sequence seq) except -1
    cdef Py_ssize_t batch(self, long long row) except -1
    cdef int tally(self, Sequence seq) except -1
