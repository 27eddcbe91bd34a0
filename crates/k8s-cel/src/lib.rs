//! CEL, the Common Expression Language, as Kubernetes understands it in the selectors of devices.
