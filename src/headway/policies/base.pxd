from headway.state.views cimport ClusterState, PoolState, ReplicaState, Request


cdef class Policy:
    cpdef object admit(self, Request request, ClusterState cluster)
    cpdef object choose_model(self, Request request, ClusterState cluster)
    cpdef object route(self, Request request, PoolState pool)
    cpdef object retain(self, Request request, ReplicaState replica)
    cpdef object order(self, object queue)
    cpdef object scale(self, ClusterState cluster)
