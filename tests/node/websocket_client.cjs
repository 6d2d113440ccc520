// A WebSocket client by the library `ws`, over HTTP/1.1.
//
// Arguments: the address, the host, the path, the number of messages, the authority of the server's certificate, and
// the name of its own. It sends the messages without waiting, texts and binary in turn, and prints one JSON line:
// `open`, how many came back as they were, `deflate`, and the `code` of the close; or the `status` of the refusal.

'use strict';

const fs = require('node:fs');
const WebSocket = require('ws');

const [address, host, path, count, authority, certificate] = process.argv.slice(2);
const [ip, port] = address.split(':');
// No name is asked for: every host is at that address.
const lookup = (_name, wanted, found) => {
  if (wanted.all) found(null, [{ address: ip, family: 4 }]);
  else found(null, ip, 4);
};
const options = { lookup, headers: { Host: host }, servername: host };
if (authority) options.ca = fs.readFileSync(`${authority}.crt`);
if (certificate) {
  options.cert = fs.readFileSync(`${certificate}.crt`);
  options.key = fs.readFileSync(`${certificate}.key`);
}
const socket = new WebSocket(`${authority ? 'wss' : 'ws'}://${host}:${port}${path}`, options);
const total = Number(count);
const message = (index) => (index % 2 ? Buffer.alloc(index * 100, index) : `message ${index}`);
let same = 0;
let seen = 0;

socket.on('unexpected-response', (_request, response) => {
  console.log(JSON.stringify({ open: false, status: response.statusCode }));
  process.exit(0);
});
socket.on('error', (error) => {
  console.log(JSON.stringify({ open: false, error: error.message }));
  process.exit(0);
});
socket.on('open', () => {
  for (let index = 0; index < total; index += 1) socket.send(message(index));
});
socket.on('message', (data, binary) => {
  const sent = message(seen);
  if (binary ? Buffer.compare(data, sent) === 0 : data.toString() === sent) same += 1;
  seen += 1;
  if (seen === total) socket.close(1000);
});
socket.on('close', (code) => {
  console.log(JSON.stringify({ open: true, same, deflate: socket.extensions.includes('permessage-deflate'), code }));
});
