cimport cython


@cython.final
cdef class StepLaw:
    cdef double[::1] linear_s
    cdef double[::1] seq_s
    cdef double[::1] decode_s
    cdef double[::1] decode_ctx_s
    cdef double[::1] decode_window_s
    cdef double[::1] p2p_s
    cdef double[::1] shared_s
    cdef double prefill_base_s
    cdef double prefill_area_s
    cdef double prefill_window_area_s
    cdef double prompt_step_s
    cdef readonly int stages
    cdef readonly long long kv_blocks
    cdef readonly long long block_tokens
    cdef readonly long long window
    cdef readonly long long window_group
    cdef readonly long long max_context
    cdef readonly long long longest
    cdef readonly bint prefill_alone
    cdef readonly long long poll_steps
    cdef readonly bint ahead
    cdef readonly long long align_steps
    cdef readonly long long gather_steps
    cdef double decode_base(self, long long n) noexcept
    cdef double chunk_s(self, long long area, long long windowed) noexcept
    cdef double mixed_s(self, long long n, long long ctx, long long ctx_window, long long tokens, long long seqs) noexcept


cpdef object buffer(object values)
cpdef object zeros(Py_ssize_t count)


cpdef long long window_area(long long prefix, long long tokens, long long window) noexcept
