cimport cython

from headway.engine.gaps cimport Gaps
from headway.engine.law cimport StepLaw
from headway.engine.sequence cimport Line, Sequence, StepHeap


@cython.final
cdef class Lane:
    cdef long long n
    cdef long long n_window
    cdef long long ctx
    cdef long long ctx_window
    cdef long long step
    cdef long long block_tokens
    cdef long long window
    cdef long long window_group
    cdef long long[::1] due
    cdef long long[::1] due_window
    cdef StepHeap finish
    cdef StepHeap cross
    cdef Line chunks
    cdef double chunk_s
    cdef long long chunk_tokens
    cdef long long chunk_count
    cdef long long chunk_context
    cdef long long chunk_area
    cdef long long chunk_window_area
    cdef bint stalled
    cdef bint polls
    cdef list fresh
    cdef bint busy
    cdef double end_s
    cdef double last_end_s
    cdef bint dirty
    cdef double anchor_s
    cdef double base_s
    cdef double slope_s
    cdef double slope_window_s
    cdef long long anchor_ctx
    cdef long long anchor_ctx_window
    cdef long long done
    cdef long long planned
    cdef int clear_chunks(self) except -1
    cdef int add_chunk(self, StepLaw law, long long prefix, long long tokens) except -1
    cdef tuple as_row(self, bint alone, bint single, long long waiting)
    cdef int join(self, Sequence seq) except -1
    cdef int leave(self, Sequence seq) except -1
    cdef int withdraw(self, Sequence seq) except -1
    cdef Sequence latest(self)
    cdef long long next_demand(self) noexcept
    cdef long long demand(self, long long first, long long steps) noexcept
    cdef long long affordable(self, long long steps, long long pages) noexcept
    cdef int advance(self, long long steps) except -1
    cdef int drop_anchor(self, double now, StepLaw law) except -1
    cdef double after(self, long long steps) noexcept
    cdef double gap(self, long long step) noexcept
    cdef bint leaps(self) noexcept
    cdef double cut(self, long long steps) noexcept
    cdef long long steps_by(self, double now, bint late, long long limit) noexcept
    cdef int count_gaps(self, Gaps gaps) except -1
