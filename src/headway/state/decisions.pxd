cimport cython


@cython.final
@cython.freelist(256)
cdef class Route:
    cdef readonly Py_ssize_t index
    cdef readonly str reason


cpdef Route route_to(Py_ssize_t index, str reason)


cdef class Accept:
    cdef readonly str reason


cdef class Reject:
    cdef readonly str reason


cdef class Hold:
    cdef readonly str reason


cdef class Defer:
    cdef readonly double until_s
    cdef readonly str reason


cdef class Choose:
    cdef readonly str model
    cdef readonly str reason


cdef class Scale:
    cdef readonly Py_ssize_t pool
    cdef readonly long long replicas
    cdef readonly str reason
