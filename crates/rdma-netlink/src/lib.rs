//! RDMA netlink (`NETLINK_RDMA`): which RDMA devices there are, in which namespace, and how to move one.
