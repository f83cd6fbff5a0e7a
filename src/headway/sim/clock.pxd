cimport cython


@cython.final
cdef class EngineClock:
    cdef double[::1] time_s
    cdef int[::1] heap
    cdef int[::1] place
    cdef Py_ssize_t size
    cdef int set(self, int engine, double time_s) noexcept
    cdef Py_ssize_t move(self, Py_ssize_t at, Py_ssize_t hole) noexcept
