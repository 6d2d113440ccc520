// Node's own HTTP/2 server; in clear text with prior knowledge, or over TLS with `h2` and `http/1.1`.
//
// Arguments: the names of its certificate and of its clients' authority, or none. The path selects the answer: `/echo`
// sends the request's body back, with trailers; `/hints` sends two 103 first; `/reset` resets the stream after the head;
// `/goaway` says GOAWAY and then answers; any other reports the request as JSON.

'use strict';

const fs = require('node:fs');
const http2 = require('node:http2');

const [certificate, authority] = process.argv.slice(2);

function server() {
  if (!certificate) return http2.createServer();
  const options = {
    allowHTTP1: true,
    cert: fs.readFileSync(`${certificate}.crt`),
    key: fs.readFileSync(`${certificate}.key`),
  };
  if (authority) {
    Object.assign(options, { ca: fs.readFileSync(`${authority}.crt`), requestCert: true, rejectUnauthorized: true });
  }
  return http2.createSecureServer(options);
}

function report(request) {
  const peer = request.socket.getPeerCertificate?.();
  return JSON.stringify({
    version: request.httpVersion,
    method: request.method,
    path: request.url,
    fields: request.headers,
    client: peer?.subject?.CN ?? null,
  });
}

function answer(request, response) {
  const path = request.url.split('?')[0];
  if (path === '/echo') {
    response.writeHead(200, { trailer: 'x-trailer' });
    request.on('data', (chunk) => response.write(chunk));
    request.on('end', () => {
      response.addTrailers({ 'x-trailer': 'the end' });
      response.end();
    });
    return;
  }
  if (path === '/hints') {
    response.writeEarlyHints({ link: '</one.css>; rel=preload; as=style' });
    response.writeEarlyHints({ link: '</two.css>; rel=preload; as=style' });
  }
  if (path === '/reset') {
    response.writeHead(200);
    response.flushHeaders?.();
    response.stream?.close(http2.constants.NGHTTP2_INTERNAL_ERROR);
    return;
  }
  if (path === '/goaway') request.stream?.session.goaway(http2.constants.NGHTTP2_NO_ERROR);
  response.end(report(request));
}

const listening = server();
listening.on('request', answer);
listening.listen(0, '127.0.0.1', () => {
  console.error('ready ' + JSON.stringify({ address: `127.0.0.1:${listening.address().port}` }));
});
