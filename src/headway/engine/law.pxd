cdef class StepLaw:
    cdef double[::1] linear_s
    cdef double[::1] seq_s
    cdef double[::1] decode_s
    cdef double[::1] decode_ctx_s
    cdef double[::1] decode_window_s
    cdef double[::1] p2p_s
    cdef double prefill_base_s
    cdef double prefill_area_s
    cdef double prefill_window_area_s
    cdef readonly int stages
    cdef double decode_base(self, long long n) noexcept
    cdef double chunk_s(self, long long prefix, long long tokens, long long window) noexcept
    cdef double mixed_s(self, long long n, long long ctx, long long ctx_window, long long tokens, long long seqs) noexcept


cpdef long long window_area(long long prefix, long long tokens, long long window) noexcept
