"""The gRPC edge: the only folder that knows protobuf."""
