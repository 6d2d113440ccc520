//! Requests as they reach a raw upstream: framed by the gateway, whatever the method and the client's protocol.
