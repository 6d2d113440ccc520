// A WebSocket server by the library `ws`: it echoes messages, with permessage-deflate where the client offers it.
//
// Arguments: the names of its certificate and of its clients' authority (NAME.crt, NAME.key), or none for clear text.

'use strict';

const fs = require('node:fs');
const http = require('node:http');
const https = require('node:https');
const { WebSocketServer } = require('ws');

const [certificate, authority] = process.argv.slice(2);

function server() {
  if (!certificate) return http.createServer();
  const options = { cert: fs.readFileSync(`${certificate}.crt`), key: fs.readFileSync(`${certificate}.key`) };
  if (authority) {
    Object.assign(options, { ca: fs.readFileSync(`${authority}.crt`), requestCert: true, rejectUnauthorized: true });
  }
  return https.createServer(options);
}

const listening = server();
const sockets = new WebSocketServer({ server: listening, perMessageDeflate: true });
sockets.on('connection', (socket) => {
  socket.on('message', (data, binary) => socket.send(data, { binary }));
  // The library closes the socket after it.
  socket.on('error', () => {});
});
listening.listen(0, '127.0.0.1', () => {
  console.error('ready ' + JSON.stringify({ address: `127.0.0.1:${listening.address().port}` }));
});
